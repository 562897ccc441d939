"""Independent tasks on executors: processes, concurrent.futures, Dask."""
