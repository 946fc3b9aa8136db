"""The classic models on the SVD: plain functions of arrays and of states that are pytrees."""

from . import completion as completion
from . import image as image
from . import pca as pca
from . import recommender as recommender
from . import robust as robust
