"""Low-rank, Kronecker, tensor-train and four-bit approximation: arrays in, arrays out.

Needs jax and numpy, nothing else. Matrices are `(in, out)` as Flax stores kernels: `y = x @ w`, a
row is an input feature.
"""

from lpaf_jax.linalg.als import AlsInfo as AlsInfo
from lpaf_jax.linalg.als import weighted_als as weighted_als
from lpaf_jax.linalg.channels import Elimination as Elimination
from lpaf_jax.linalg.channels import eliminate_channels as eliminate_channels
from lpaf_jax.linalg.factors import LowRank as LowRank
from lpaf_jax.linalg.factors import balance as balance
from lpaf_jax.linalg.factors import weighted_error as weighted_error
from lpaf_jax.linalg.fastfood import Fastfood as Fastfood
from lpaf_jax.linalg.fastfood import fastfood as fastfood
from lpaf_jax.linalg.fastfood import hadamard as hadamard
from lpaf_jax.linalg.kronecker import Kronecker as Kronecker
from lpaf_jax.linalg.kronecker import kronecker_shapes as kronecker_shapes
from lpaf_jax.linalg.kronecker import nearest_kronecker as nearest_kronecker
from lpaf_jax.linalg.metric import metric_svd as metric_svd
from lpaf_jax.linalg.nf4 import Nf4 as Nf4
from lpaf_jax.linalg.nf4 import nf4 as nf4
from lpaf_jax.linalg.nf4 import nf4_bytes as nf4_bytes
from lpaf_jax.linalg.nf4 import nf4_dense as nf4_dense
from lpaf_jax.linalg.nf4 import nf4_matmul as nf4_matmul
from lpaf_jax.linalg.randomized import randomized_svd as randomized_svd
from lpaf_jax.linalg.ranks import Choices as Choices
from lpaf_jax.linalg.ranks import allocate_choices as allocate_choices
from lpaf_jax.linalg.ranks import allocate_ranks as allocate_ranks
from lpaf_jax.linalg.ranks import allocate_ranks_or_dense as allocate_ranks_or_dense
from lpaf_jax.linalg.ranks import channel_choices as channel_choices
from lpaf_jax.linalg.ranks import rank_choices as rank_choices
from lpaf_jax.linalg.ranks import rank_for_ratio as rank_for_ratio
from lpaf_jax.linalg.regression import regressed as regressed
from lpaf_jax.linalg.sparse import sparsegpt as sparsegpt
from lpaf_jax.linalg.spectra import effective_rank as effective_rank
from lpaf_jax.linalg.spectra import empty_columns as empty_columns
from lpaf_jax.linalg.spectra import empty_rows as empty_rows
from lpaf_jax.linalg.spectra import energy_rank as energy_rank
from lpaf_jax.linalg.spectra import singular_values as singular_values
from lpaf_jax.linalg.spectra import stable_rank as stable_rank
from lpaf_jax.linalg.status import Status as Status
from lpaf_jax.linalg.svd import svd as svd
from lpaf_jax.linalg.svd import weighted_svd as weighted_svd
from lpaf_jax.linalg.tensor_train import TensorTrain as TensorTrain
from lpaf_jax.linalg.tensor_train import tensor_train as tensor_train
