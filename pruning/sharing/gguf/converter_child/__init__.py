"""What runs inside the process of llama.cpp's converter. It imports nothing else of Secateur."""
