"""The Spark engine: the same batch requests on several machines. The only package that imports pyspark."""
