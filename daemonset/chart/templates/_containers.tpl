{{/* The agent and its programmer. */}}
{{- define "nodeagent.containers" -}}
initContainers:
  # The agent's folder: its group may write there, and nobody else; and the programmer's, which is nobody's but root's.
  - name: folders
    image: {{ include "nodeagent.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [sh, -euc]
    args:
      - |
        cd /run/nodeagent
        mkdir -p agent programs
        chgrp 65532 agent
        chmod 0770 agent
        chmod 0700 programs
    securityContext:
      runAsUser: 0
      runAsGroup: 0
      {{- include "nodeagent.unprivileged" . | nindent 6 }}
    resources: {{- toYaml .Values.agent.resources | nindent 6 }}
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
    readinessProbe: {httpGet: {path: /readyz, port: metrics}, periodSeconds: 2, timeoutSeconds: 5}
    securityContext:
      runAsUser: 65532
      runAsGroup: 65532
      runAsNonRoot: true
      {{- include "nodeagent.unprivileged" . | nindent 6 }}
    resources: {{- toYaml .Values.agent.resources | nindent 6 }}
    volumeMounts:
      - {name: config, mountPath: /etc/nodeagent, readOnly: true}
      - {name: token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
      - {name: seam, mountPath: /run/seam, readOnly: true}
      - {name: agent-state, mountPath: /run/nodeagent}
      - {name: cgroup, mountPath: /host/cgroup, readOnly: true, mountPropagation: HostToContainer}
      - {name: netns, mountPath: /var/run/netns, readOnly: true, mountPropagation: HostToContainer}
      - {name: agent-tmp, mountPath: /tmp}
  # It has no probe of its own: the agent, which asks it all day, is not ready where it does not answer.
  - name: programmer
    image: {{ include "nodeagent.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    args:
      - --log-format=json
      - --log-level={{ .Values.logLevel }}
      - programmer
      - --socket=/run/seam/programmer
      - --agent-uid=65532
      - --proc=/host/proc
      - --cgroup=/host/cgroup
      - --bpffs=/sys/fs/bpf
      - --programs=/run/nodeagent/programs
      - --nri=/var/run/nri/nri.sock
    securityContext: {{- include "nodeagent.privileges" . | nindent 6 }}
    resources: {{- toYaml .Values.programmer.resources | nindent 6 }}
    volumeMounts:
      - {name: seam, mountPath: /run/seam}
      # The container runtime's socket, which makes whoever holds it root; the agent gets a connection that has been narrowed.
      - {name: nri, mountPath: /var/run/nri, readOnly: true}
      {{- include "nodeagent.node" . | nindent 6 }}
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
      - --state-dir=/run/nodeagent/agent
      - --cgroup=/host/cgroup
      - --bpffs=/sys/fs/bpf
      {{- if .Values.uninstall.now }}
      - --now
      {{- else }}
      - --drain-timeout=3600
      {{- end }}
    securityContext: {{- include "nodeagent.privileges" . | nindent 6 }}
    resources: {{- toYaml .Values.programmer.resources | nindent 6 }}
    volumeMounts: {{- include "nodeagent.node" . | nindent 6 }}
  - name: folders
    image: {{ include "nodeagent.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [rm, -rf, /run/nodeagent/agent, /run/nodeagent/programs]
    securityContext:
      runAsUser: 0
      runAsGroup: 0
      {{- include "nodeagent.unprivileged" . | nindent 6 }}
    resources: {{- toYaml .Values.agent.resources | nindent 6 }}
    volumeMounts:
      - {name: state, mountPath: /run/nodeagent}
containers:
  - name: done
    image: {{ include "nodeagent.image" . | quote }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    command: [sleep, infinity]
    securityContext:
      runAsUser: 65532
      runAsGroup: 65532
      runAsNonRoot: true
      {{- include "nodeagent.unprivileged" . | nindent 6 }}
    resources:
      requests: {cpu: 1m, memory: 8Mi}
      limits: {memory: 16Mi}
{{- end }}
