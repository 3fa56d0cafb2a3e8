"""Benchmarks: speed, memory and accuracy tables. They keep freed memory, as the scripts do."""

from common.machine import keep_freed_memory

keep_freed_memory()
