"""Dollars for a million output tokens, of a server, from its measured rate and what its machine costs, and of an API; and what a
training took in energy and dollars."""

import re
from dataclasses import dataclass
from typing import Any

Values = dict[str, Any]
RATE = re.compile(r"c(\d+)_tokens_per_second")
HOUR, KILO = 3600, 1000


@dataclass
class Price:
    hour: float
    """Dollars for one device."""
    date: str
    """On which it was asked."""
    source: str


@dataclass
class Power:
    watts: float
    """Of one device under load."""
    source: str


@dataclass
class Api:
    input: float
    """Dollars for a million tokens of prompts."""
    output: float
    """The same of answers."""
    date: str
    source: str


@dataclass
class Serving:
    price: Price
    """Of the device that serves."""
    utilisation: float
    """Share of what a server could answer that it is asked, on average over the hours that are paid."""
    apis: dict[str, Api]
    margin: float
    """By how much the scores of two models of one quality may differ."""

    def check(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise SystemExit(
                f"cost.utilisation: {self.utilisation:g}, expected more than 0 and at most 1: see conf/cost"
            )


@dataclass
class Cost(Serving):
    power: Power
    """Of the device that trains."""


def levels(report: Values) -> list[int]:
    """The concurrencies that a report of `bench` has, in order."""
    return sorted(int(match[1]) for key in report if (match := RATE.fullmatch(key)))


def served(report: Values, concurrency: int, cost: Serving) -> float:
    """Dollars for a million output tokens at a concurrency; what their prompts took of the time is in it."""
    tokens_an_hour = HOUR * report[f"c{concurrency}_tokens_per_second"] * cost.utilisation
    return float(1e6 * cost.price.hour / tokens_an_hour)


def energy(seconds: float, devices: int, cost: Cost) -> float:
    """Kilowatt-hours of devices that are busy all the time: an estimate, without their host."""
    return cost.power.watts * devices * seconds / HOUR / KILO


def paid(seconds: float, devices: int, cost: Cost) -> float:
    """Dollars of devices for a time."""
    return cost.price.hour * devices * seconds / HOUR


def asked(api: Api, report: Values) -> float:
    """Dollars for a million output tokens of an API that is sent what the report's server was: prompts are paid for too."""
    return api.output + api.input * prompt_tokens(report) / answer_tokens(report)


def prompt_tokens(report: Values) -> float:
    """Of a request, on average."""
    return float(report[f"c{levels(report)[-1]}_prompt_tokens"])


def answer_tokens(report: Values) -> float:
    """Of a request, on average."""
    name = f"c{levels(report)[-1]}"
    return float(report[f"{name}_tokens_per_second"] / report[f"{name}_requests_per_second"])
