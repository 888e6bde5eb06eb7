"""`python -m daemonset.packaging HELM`: write the schema and the manifests; HELM is the program.  `make manifests`."""

import sys
from pathlib import Path

from daemonset.packaging.manifests import write_manifests
from daemonset.packaging.schema import write_schema

write_schema()
write_manifests(Path(sys.argv[1]))
