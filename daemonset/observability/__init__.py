"""What people watch nodeagent with: Grafana dashboards, Prometheus rules, and how Prometheus finds the agents.

The source of everything generated in ``daemonset/``; ``make dashboards`` writes it
(docs/adr/0013).  Each dashboard, the recording rules and the alerts have a module of their own;
:mod:`~daemonset.observability.words` holds what they have in common.
"""
