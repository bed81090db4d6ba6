"""The steps that data sets share: engine, vocabularies, features of the past, Parquet files, manifest."""
