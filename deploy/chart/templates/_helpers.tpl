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
{{- $all := printf "namespace=%q,%s" .root.Release.Namespace (include "temper.side" .side) -}}
{{- with .root.Values.canary -}}
(sum(increase({{ .guard.metric }}{ {{- $all }},verdict="blocked"}[{{ .window }}])) or vector(0)) / (sum(increase({{ .guard.metric }}{ {{- $all }}}[{{ .window }}])) >= {{ .requests }})
{{- end }}
{{- end }}

{{/* 99th percentile of a request's seconds on one side. */}}
{{- define "temper.p99" -}}
histogram_quantile(0.99, sum by (le) (rate(vllm:e2e_request_latency_seconds_bucket{ {{- include "temper.series" .root }},{{ include "temper.side" .side }}}[{{ .root.Values.canary.window }}])))
{{- end }}
