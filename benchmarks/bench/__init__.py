"""``headkit bench``: latency, throughput, memory and size of models on each runtime."""
