"""What benchmarks start as processes of their own: stand-ins, peers, readers. Each prints its address as one line."""
