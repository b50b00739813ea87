from .config import RunConfig as RunConfig
from .config.overrides import override as override
from .errors import InputError as InputError
from .evaluation.measure import EvalReport as EvalReport
from .inference.encoder import PictureEmbedder as PictureEmbedder
from .inference.encoder import load as load
from .inference.export import export as export
from .inference.fit import FitResult as FitResult
from .inference.fit import fit as fit
from .losses.hgnn import HGNN as HGNN
from .losses.hist import HISTLoss as HISTLoss
from .losses.many_classes.shards import gather_batch as gather_batch
from .losses.rivals import RivalLoss as RivalLoss
from .metrics.clustering import clustering_metrics as clustering_metrics
from .metrics.retrieval import compare_scores as compare_scores
from .metrics.retrieval import nearest_neighbours as nearest_neighbours
from .metrics.retrieval import retrieval_metrics as retrieval_metrics
from .metrics.retrieval import retrieval_scores as retrieval_scores
from .metrics.retrieval import score_intervals as score_intervals
from .models.embedder import Embedder as Embedder
from .recipes.catalogue import recipe as recipe
from .search.index import ImageIndex as ImageIndex
from .training.loop import train as train
from .training.loop import train_epochs as train_epochs
from .training.run_folder import EpochReport as EpochReport
from .training.run_folder import Run as Run

__version__: str
