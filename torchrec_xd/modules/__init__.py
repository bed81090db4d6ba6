"""Building blocks of the models: plain nn.Modules that know nothing of tables, devices or domains."""
