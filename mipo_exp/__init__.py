"""mipo_exp: mutual-information preference optimization (arXiv 2603.19294) from data to report."""

import os

# oneDNN (`onednn`) keeps a kernel for each shape of a product, and torch's binding another list of them: a thousand
# each by default, which is half a gigabyte where batches differ in length. Both read this before their first product.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "64")
