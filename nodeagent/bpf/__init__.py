"""eBPF from user space: the system call, and the programs that are small enough to assemble here."""
