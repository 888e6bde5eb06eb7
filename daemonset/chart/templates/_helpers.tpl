{{/* What every object is labelled with. */}}
{{- define "nodeagent.labels" -}}
app.kubernetes.io/name: nodeagent
app.kubernetes.io/part-of: nodeagent
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What its pods are found by; never to be changed. */}}
{{- define "nodeagent.selector" -}}
app.kubernetes.io/name: nodeagent
{{- end }}

{{- define "nodeagent.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{- end -}}
{{- end -}}
{{- end }}

{{/* The port of http.metrics, which the schema has checked. */}}
{{- define "nodeagent.metricsPort" -}}
{{- dig "http" "metrics" "[::]:9640" .Values.config | splitList ":" | last -}}
{{- end }}

{{/* Who the programmer is, to the kernel; uninstalling is the same work. */}}
{{- define "nodeagent.privileges" -}}
runAsUser: 0
runAsGroup: 0
privileged: false
readOnlyRootFilesystem: true
seccompProfile: {type: RuntimeDefault}
# What each is for: nodeagent/cli/capabilities.py.
capabilities:
  drop: [ALL]
  add: [{{ concat (list "NET_ADMIN" "NET_BROADCAST" "NET_RAW" "SYS_ADMIN" "SYS_PTRACE") .Values.programmer.extraCapabilities | join ", " }}]
{{- with .Values.programmer.appArmorProfile }}
appArmorProfile: {type: {{ . }}}
{{- end }}
{{- with .Values.programmer.seLinuxOptions }}
seLinuxOptions: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Who needs no privilege; a root of no capability may still do what the owner of a file may. */}}
{{- define "nodeagent.unprivileged" -}}
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
seccompProfile: {type: RuntimeDefault}
capabilities: {drop: [ALL]}
{{- end }}

{{/* What the programmer sees of the node. */}}
{{- define "nodeagent.node" -}}
- {name: proc, mountPath: /host/proc, readOnly: true}
- {name: cgroup, mountPath: /host/cgroup, readOnly: true, mountPropagation: HostToContainer}
- {name: bpffs, mountPath: /sys/fs/bpf, mountPropagation: HostToContainer}
- {name: netns, mountPath: /var/run/netns, readOnly: true, mountPropagation: HostToContainer}
- {name: state, mountPath: /run/nodeagent}
- {name: tmp, mountPath: /tmp}
{{- end }}
