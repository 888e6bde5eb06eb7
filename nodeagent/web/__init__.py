"""HTTP, on two listeners: what the whole cluster may see, and what only those may who can look inside anyway."""
