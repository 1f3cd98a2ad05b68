"""What a person looks at: the page, the terminal's table, the model card."""

from lpaf_jax.report.card import model_card as model_card
from lpaf_jax.report.html import write_report as write_report
from lpaf_jax.report.table import print_results as print_results
from lpaf_jax.report.table import result_table as result_table
from lpaf_jax.report.table import result_text as result_text
from lpaf_jax.report.words import cautions as cautions
from lpaf_jax.report.words import summary_line as summary_line
