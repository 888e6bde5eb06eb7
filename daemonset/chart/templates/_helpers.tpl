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

{{/* Who the agent is, and what its group is: the image's own user. */}}
{{- define "nodeagent.uid" -}}65532{{- end }}

{{/* Who the programmer is, to the kernel; uninstalling is the same work. */}}
{{- define "nodeagent.privileges" -}}
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
seccompProfile: {type: RuntimeDefault}
capabilities:
  drop: [ALL]
  # NET_ADMIN: rules, and programs.  NET_BROADCAST: to hear of changes in all namespaces.  NET_RAW: legacy iptables' sockets.  SYS_ADMIN: to enter pods' network namespaces; BPF and
  # PERFMON are part of it.  SYS_PTRACE: to open those of other users' processes.  SYS_ADMIN's other doors the programmer closes itself.
  add: [NET_ADMIN, NET_BROADCAST, NET_RAW, SYS_ADMIN, SYS_PTRACE]
{{- with .Values.programmer.appArmorProfile }}
appArmorProfile: {type: {{ . }}}
{{- end }}
{{- with .Values.programmer.seLinuxOptions }}
seLinuxOptions: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What the programmer sees of the node. */}}
{{- define "nodeagent.programmerMounts" -}}
# Not hostPID: this shows it the node's processes, and lets it signal none.
- {name: proc, mountPath: /host/proc, readOnly: true}
- {name: cgroup, mountPath: /host/cgroup, readOnly: true, mountPropagation: HostToContainer}
- {name: bpffs, mountPath: /sys/fs/bpf, mountPropagation: HostToContainer}
# Those of pods that have no process yet, or none any more.
- {name: netns, mountPath: /var/run/netns, readOnly: true, mountPropagation: HostToContainer}
- {name: tmp, mountPath: /tmp}
{{- end }}
