"""persrm-jax: personalized reasoning reward models, trained in JAX."""

__version__ = "0.1.0"
