"""What a run will take in time, memory, disk and money, before it is paid for."""
