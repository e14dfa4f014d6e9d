"""What check_vllm.py and bench_vllm.py are made of."""
