{{- define "hipscore.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "hipscore.instance" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "hipscore.labels" -}}
{{ include "hipscore.instance" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* (dict "root" $ "component" NAME) */}}
{{- define "hipscore.selector" -}}
{{ include "hipscore.instance" .root }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "hipscore.metadata" -}}
name: {{ include "hipscore.fullname" .root }}-{{ .component }}
labels:
  {{- include "hipscore.labels" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* (dict "root" $ "suffix" "-gpu") */}}
{{- define "hipscore.image" -}}
{{- $image := .root.Values.image -}}
{{- if and $image.digest (not .suffix) -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s%s" $image.repository (default .root.Chart.AppVersion $image.tag) (default "" .suffix) -}}
{{- end -}}
{{- end -}}

{{- define "hipscore.claim" -}}
{{- default (printf "%s-spool" (include "hipscore.fullname" .)) .Values.spool.existingClaim -}}
{{- end -}}

{{- define "hipscore.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "hipscore.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What every pod begins with: labels, who it runs as, how long it may take to end.
     (dict "root" $ "component" NAME "of" VALUES "grace" SECONDS) */}}
{{- define "hipscore.podMetadata" -}}
labels:
  {{- include "hipscore.selector" . | nindent 2 }}
  {{- with .root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  checksum/config: {{ include (print .root.Template.BasePath "/configmap.yaml") .root | sha256sum }}
  {{- with .root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "hipscore.podHead" -}}
serviceAccountName: {{ include "hipscore.fullname" .root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .grace }}
securityContext:
  {{- include "hipscore.podSecurity" .root | nindent 2 }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .of.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .of.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "hipscore.selector" . | nindent 8 }}
{{- end -}}

{{/* Image, settings, mounts of every container of a process.
     (dict "root" $ "suffix" SUFFIX "of" VALUES) */}}
{{- define "hipscore.containerHead" -}}
image: {{ include "hipscore.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  {{- include "hipscore.containerSecurity" .root | nindent 2 }}
resources:
  {{- toYaml .of.resources | nindent 2 }}
envFrom:
  - configMapRef:
      name: {{ include "hipscore.fullname" .root }}-settings
{{- end -}}

{{- define "hipscore.secretEnv" -}}
- name: HIPSCORE_DATABASE_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.secret.name }}
      key: {{ .Values.secret.databaseUrlKey }}
- name: HIPSCORE_BROKER_URL
  valueFrom:
    secretKeyRef:
      name: {{ .Values.secret.name }}
      key: {{ .Values.secret.brokerUrlKey }}
{{- end -}}

{{- define "hipscore.mounts" -}}
- name: spool
  mountPath: /var/lib/hipscore
- name: tmp
  mountPath: /tmp
{{- if .Values.rules }}
- name: rules
  mountPath: /etc/hipscore
  readOnly: true
{{- end }}
{{- end -}}

{{- define "hipscore.volumes" -}}
- name: spool
  persistentVolumeClaim:
    claimName: {{ include "hipscore.claim" . }}
- name: tmp
  emptyDir:
    sizeLimit: 1Gi
{{- if .Values.rules }}
- name: rules
  projected:
    sources:
      - configMap:
          name: {{ include "hipscore.fullname" . }}-rules
      {{- with .Values.rulesSecret }}
      - secret:
          name: {{ . }}
      {{- end }}
{{- end }}
{{- end -}}

{{/* A worker's main process writes a heartbeat while its children compute. (dict "queue" QUEUE) */}}
{{- define "hipscore.workerProbes" -}}
startupProbe: # a GPU's first start builds its engines
  exec:
    command: [hipscore, workers, --queue, {{ .queue }}, --here]
  periodSeconds: 20
  timeoutSeconds: 30
  failureThreshold: 45
livenessProbe: # patient: while the broker is down there is no heartbeat, and a restart changes nothing
  exec:
    command: [hipscore, workers, --queue, {{ .queue }}, --here]
  periodSeconds: 120
  timeoutSeconds: 30
  failureThreshold: 5
{{- end -}}
