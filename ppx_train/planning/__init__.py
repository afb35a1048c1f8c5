"""What a run will cost before it starts: memory, time, samples, disk. It must not load weights or need a GPU."""
