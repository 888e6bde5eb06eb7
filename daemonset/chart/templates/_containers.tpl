{{/* The agent and its programmer. */}}
{{- define "nodeagent.containers" -}}
initContainers:
  # The agent is nobody, and keeps its state on the node: the directory becomes its group's.  It takes no capability.
  - name: state
    image: {{ include "nodeagent.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [install, --directory, --mode=2770, --group={{ include "nodeagent.uid" . }}, /run/nodeagent]
    securityContext:
      runAsUser: 0
      runAsGroup: 0
      privileged: false
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      seccompProfile: {type: RuntimeDefault}
      capabilities: {drop: [ALL]}
    resources:
      requests: {cpu: 1m, memory: 8Mi}
      limits: {memory: 32Mi}
    volumeMounts:
      - {name: state, mountPath: /run/nodeagent}
containers:
  - name: agent
    image: {{ include "nodeagent.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args:
      - --log-format=json
      - --log-level={{ .Values.logLevel }}
      - run
      - --kubernetes
      - --config=/etc/nodeagent/config.yaml
      - --programmer=/run/seam/programmer
      - --state-dir=/run/nodeagent
      - --cgroup=/host/cgroup
    env:
      - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    ports:
      - {name: metrics, containerPort: {{ include "nodeagent.metricsPort" . }}}
    # Alive: its loop answers.  Ready: it knows its pods, its programmer answers, and the kernel counts.
    startupProbe: {httpGet: {path: /healthz, port: metrics}, periodSeconds: 1, failureThreshold: 120}
    livenessProbe: {httpGet: {path: /healthz, port: metrics}, periodSeconds: 10, timeoutSeconds: 5, failureThreshold: 6}
    readinessProbe: {httpGet: {path: /readyz, port: metrics}, periodSeconds: 5, timeoutSeconds: 5}
    securityContext:
      runAsUser: {{ include "nodeagent.uid" . }}
      runAsGroup: {{ include "nodeagent.uid" . }}
      runAsNonRoot: true
      privileged: false
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      seccompProfile: {type: RuntimeDefault}
      capabilities: {drop: [ALL]}
    resources: {{- toYaml .Values.agent.resources | nindent 6 }}
    volumeMounts:
      - {name: config, mountPath: /etc/nodeagent, readOnly: true}
      - {name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
      - {name: seam, mountPath: /run/seam, readOnly: true}  # it connects; only the programmer may make the socket
      - {name: state, mountPath: /run/nodeagent}
      - {name: cgroup, mountPath: /host/cgroup, readOnly: true, mountPropagation: HostToContainer}
      - {name: tmp, mountPath: /tmp}
  - name: programmer
    image: {{ include "nodeagent.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args:
      - --log-format=json
      - --log-level={{ .Values.logLevel }}
      - programmer
      - --socket=/run/seam/programmer
      - --agent-uid={{ include "nodeagent.uid" . }}
      - --proc=/host/proc
      - --cgroup=/host/cgroup
      - --bpffs=/sys/fs/bpf
      - --programs=/opt/nodeagent/share/programs
    securityContext: {{- include "nodeagent.privileges" . | nindent 6 }}
    resources: {{- toYaml .Values.programmer.resources | nindent 6 }}
    volumeMounts:
      - {name: seam, mountPath: /run/seam}
      {{- include "nodeagent.programmerMounts" . | nindent 6 }}
{{- end }}

{{/* Ready is a node on which nothing is left. */}}
{{- define "nodeagent.uninstall" -}}
initContainers:
  - name: uninstall
    image: {{ include "nodeagent.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args:
      - --log-format=json
      - --log-level={{ .Values.logLevel }}
      - uninstall
      - --proc=/host/proc
      - --state-dir=/run/nodeagent
      - --cgroup=/host/cgroup
      - --bpffs=/sys/fs/bpf
      {{- if .Values.uninstall.now }}
      - --now
      {{- else }}
      - --drain-timeout=3600
      {{- end }}
    securityContext: {{- include "nodeagent.privileges" . | nindent 6 }}
    resources: {{- toYaml .Values.programmer.resources | nindent 6 }}
    volumeMounts:
      {{- include "nodeagent.programmerMounts" . | nindent 6 }}
      - {name: state, mountPath: /run/nodeagent}
containers:
  - name: done
    image: {{ include "nodeagent.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [sleep, infinity]
    securityContext:
      runAsUser: 65534
      runAsGroup: 65534
      runAsNonRoot: true
      allowPrivilegeEscalation: false
      readOnlyRootFilesystem: true
      seccompProfile: {type: RuntimeDefault}
      capabilities: {drop: [ALL]}
    resources:
      requests: {cpu: 1m, memory: 8Mi}
      limits: {memory: 16Mi}
{{- end }}
