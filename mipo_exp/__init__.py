"""mipo_exp: mutual-information preference optimization (arXiv 2603.19294) from data to report."""
