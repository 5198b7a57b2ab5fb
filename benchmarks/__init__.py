"""What the fabric costs, beside what others do in its place; `python -m benchmarks.run`."""
