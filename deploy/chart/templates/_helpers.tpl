{{- define "temper.selector" -}}
app.kubernetes.io/name: temper
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "temper.labels" -}}
{{ include "temper.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ substr 0 12 .Values.model.revision | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* Argo Rollouts has a Deployment's fields and a strategy of its own. */}}
{{- define "temper.workload" -}}
{{- if .Values.canary.enabled -}}
apiVersion: argoproj.io/v1alpha1
kind: Rollout
{{- else -}}
apiVersion: apps/v1
kind: Deployment
{{- end }}
name: {{ .Release.Name }}
{{- end }}

{{/* Labels of this release's series. The headless Service is the one job that scrapes each pod, and each once. */}}
{{- define "temper.series" -}}
namespace="{{ .Release.Namespace }}",job="{{ .Release.Name }}-pods"
{{- end }}

{{/* The pod label of one side of a canary, as Prometheus names it. */}}
{{- define "temper.side" -}}
rollouts_pod_template_hash="{{ printf "{{args.%s-hash}}" . }}"
{{- end }}

{{/* Share of requests that the guard blocked on one side, of at least canary.requests. */}}
{{- define "temper.blocked" -}}
{{- $all := printf "%s,%s" (include "temper.series" .root) (include "temper.side" .side) -}}
{{- with .root.Values.canary -}}
(sum(increase(temper_guard_requests_total{ {{- $all }},verdict="blocked"}[{{ .window }}])) or vector(0)) / (sum(increase(temper_guard_requests_total{ {{- $all }}}[{{ .window }}])) >= {{ .requests }})
{{- end }}
{{- end }}

{{/* Mean score of the answers of one side's revision. Feedback on an answer may reach any pod, so all pods tell of it. */}}
{{- define "temper.judged" -}}
{{- $window := .root.Values.canary.window -}}
avg(avg_over_time(temper_judge_score{ {{- include "temper.series" .root }}}[{{ $window }}]) and on (revision) max_over_time(temper_release{ {{- include "temper.series" .root }},{{ include "temper.side" .side }}}[{{ $window }}]))
{{- end }}

{{/* 99th percentile of a request's seconds on one side. */}}
{{- define "temper.p99" -}}
histogram_quantile(0.99, sum by (le) (rate(vllm:e2e_request_latency_seconds_bucket{ {{- include "temper.series" .root }},{{ include "temper.side" .side }}}[{{ .root.Values.canary.window }}])))
{{- end }}
