"""Learners: each is a rule that turns (θ, one task) into a direction in weight space.

The outer loop averages the directions of a meta-batch and takes one step along the mean; that is all there is to
meta-learning here, and nothing else in the library knows which learner is at work. `LEARNERS` holds them by name; a
class of yours that inherits from `Learner` is in it as soon as it is defined.
"""

from metalib.learners.base import LEARNERS, Learner
from metalib.learners.gradient import ANIL, FOMAML, MAML, Finetuned, Joint, Reptile
from metalib.learners.metric import Matching, MetricLearner, Prototypical, Relation, Siamese

__all__ = [
    "ANIL",
    "FOMAML",
    "LEARNERS",
    "MAML",
    "Finetuned",
    "Joint",
    "Learner",
    "Matching",
    "MetricLearner",
    "Prototypical",
    "Relation",
    "Reptile",
    "Siamese",
]
