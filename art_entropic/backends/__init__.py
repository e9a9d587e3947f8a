"""One ART estimator, whatever its framework. The only wing that names a framework."""
