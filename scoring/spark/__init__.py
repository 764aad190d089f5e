"""The Spark engine: the same batch request, past one machine. The only package that imports pyspark."""
