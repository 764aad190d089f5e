"""The Spark engine, which runs batch requests on several machines. The only package that imports pyspark."""
