{{/* The pod of a Deployment or a Rollout. */}}
{{- define "temper.pod" -}}
serviceAccountName: {{ .Release.Name }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .Values.server.graceSeconds }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
tolerations:
{{- if .Values.resources.gpus }}
  - key: nvidia.com/gpu
    operator: Exists
    effect: NoSchedule
{{- end }}
{{- with .Values.tolerations }}
{{ toYaml . | indent 2 }}
{{- end }}
topologySpreadConstraints: # one node's end is not all replicas' end
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "temper.selector" . | nindent 8 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  seccompProfile:
    type: RuntimeDefault
initContainers:
  - name: fetch
    image: {{ .Values.fetch.image }}
    command:
      - python3
      - /scripts/fetch.py
      - {{ .Values.model.path }}
      - {{ .Values.model.md5 }}
      - {{ .Values.model.folder }}
{{- range list .Values.draft .Values.guard }}
{{- with . }}
      - {{ .path }}
      - {{ .md5 }}
      - {{ .folder }}
{{- end }}
{{- end }}
    env:
      - name: TEMPER_REPOSITORY
        value: {{ .Values.model.repository | quote }}
      - name: TEMPER_REVISION
        value: {{ .Values.model.revision | quote }}
      - name: HOME
        value: /scratch
      - name: DVC_SITE_CACHE_DIR
        value: /scratch/dvc
{{- with .Values.model.secret }}
    envFrom:
      - secretRef:
          name: {{ . }}
{{- end }}
    securityContext: {{- include "temper.locked" . | nindent 6 }}
    resources:
      requests:
        cpu: 500m
        memory: 1Gi
      limits:
        memory: 2Gi
    volumeMounts:
      - name: models
        mountPath: /var/lib/temper/models
      - name: scripts
        mountPath: /scripts
        readOnly: true
      - name: scratch
        mountPath: /scratch
      - name: tmp
        mountPath: /tmp
containers:
  - name: server # what `make serve` starts: the engine with the gateway in its process, and the process that scrubs the log
    image: {{ .Values.server.image }}
{{- with .Values.log.folder }}
    args: # beside those of the image, which name the settings
      - serve.log.folder={{ . }}/$(POD_NAME) # pods may share a volume
{{- end }}
    env:
      - name: POD_NAME
        valueFrom:
          fieldRef:
            fieldPath: metadata.name
      - name: HF_HUB_OFFLINE
        value: "1"
      - name: VLLM_NO_USAGE_STATS
        value: "1"
      - name: DO_NOT_TRACK
        value: "1"
      - name: HOME # of the caches of vLLM, Triton and torch
        value: /scratch
      - name: USER # torch asks for a name, and the image knows none of this number
        value: temper
{{- with .Values.server.key }}
      - name: {{ . }}
        valueFrom:
          secretKeyRef:
            name: {{ required "server.secret: name the Secret with the key that callers send" $.Values.server.secret }}
            key: key
{{- end }}
{{- range $name, $value := .Values.server.environment }}
      - name: {{ $name }}
        value: {{ $value | quote }}
{{- end }}
{{- with .Values.server.variables }}
    envFrom:
      - secretRef:
          name: {{ . }}
{{- end }}
    ports:
      - name: http
        containerPort: {{ .Values.server.port }}
    startupProbe:
      httpGet:
        path: /health
        port: http
      periodSeconds: 5
      failureThreshold: {{ div (add .Values.server.startupSeconds 4) 5 }}
    readinessProbe:
      httpGet:
        path: /health
        port: http
      periodSeconds: 5
      failureThreshold: 2
      timeoutSeconds: 5
    livenessProbe: # fails when the engine behind the server is dead
      httpGet:
        path: /health
        port: http
      periodSeconds: 10
      failureThreshold: 6
      timeoutSeconds: 10
    lifecycle:
      preStop: # routers learn that the pod goes before it refuses
        sleep:
          seconds: {{ .Values.server.routedSeconds }}
    securityContext: {{- include "temper.locked" . | nindent 6 }}
    resources:
      requests:
        cpu: {{ .Values.resources.cpus | quote }}
        memory: {{ .Values.resources.memory }}
      limits:
        memory: {{ .Values.resources.memory }}
{{- if .Values.resources.gpus }}
        nvidia.com/gpu: {{ .Values.resources.gpus }}
{{- end }}
    volumeMounts:
      - name: models
        mountPath: /var/lib/temper/models
        readOnly: true
      - name: scratch
        mountPath: /scratch
      - name: tmp
        mountPath: /tmp
      - name: memory
        mountPath: /dev/shm
      - name: logs
        mountPath: /var/log/temper
      - name: settings
        mountPath: /etc/temper
        readOnly: true
volumes:
  - name: settings # of the pod's own annotation: the release before a canary keeps its own
    downwardAPI:
      items:
        - path: server.yaml
          fieldRef:
            fieldPath: metadata.annotations['temper/settings']
  - name: logs
{{- if .Values.log.claim }}
    persistentVolumeClaim:
      claimName: {{ .Values.log.claim }}
{{- else }}
    emptyDir:
      sizeLimit: {{ .Values.log.size }}
{{- end }}
  - name: models
{{- if .Values.model.claim }}
    persistentVolumeClaim:
      claimName: {{ .Values.model.claim }}
{{- else }}
    emptyDir:
      sizeLimit: {{ .Values.resources.disk }}
{{- end }}
  - name: scripts
    configMap:
      name: {{ .Release.Name }}
  - name: scratch
    emptyDir: {}
  - name: tmp
    emptyDir: {}
  - name: memory
    emptyDir:
      medium: Memory
      sizeLimit: {{ .Values.resources.sharedMemory }}
{{- end }}

{{- define "temper.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}
