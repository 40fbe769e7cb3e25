__version__: str
# The methods' public names, written from the cards by tools/index.py:
