"""Solvers: one algorithm a file, each a function of fun(w) -> (value, gradient)."""

from sparkdist.solvers._run import NOISE, pseudo_gradient
from sparkdist.solvers.gd import gd
from sparkdist.solvers.lbfgs import lbfgs
from sparkdist.solvers.newton_cg import newton_cg
from sparkdist.solvers.owlqn import owlqn

__all__ = ["NOISE", "gd", "lbfgs", "newton_cg", "owlqn", "pseudo_gradient"]
