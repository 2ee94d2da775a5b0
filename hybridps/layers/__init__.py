"""What embedding layers of any framework share: ids, padding and bags, one read for many features,
one push for many gradients, look-ahead. NumPy alone; the packages in `clients/` import it.
"""
