#!/usr/bin/env bash
# What a GPU is wanted for, in nine minutes at most, the most valuable first.
#
#     OUT=runs/gpu bash benchmarks/gpu.sh
#     REHEARSAL=yes bash benchmarks/gpu.sh      # the same parts at toy size, on any machine
#
# Each part has its own time limit, and its results lie in $OUT when it ends or is cut off. MODEL is
# the folder of MiniLM and TASK a table of sentences and labels where their packages are not
# installed; PYTHON the interpreter to use; PEAK_TFLOPS what the device does at most in bfloat16.
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=${OUT:-runs/gpu}
PYTHON=${PYTHON:-python}
MODEL=${MODEL:-minilm}
TASK=${TASK:-rotten_tomatoes}
PEAK_TFLOPS=${PEAK_TFLOPS:-989}
export PYTHONPATH=$PWD
mkdir -p "$OUT"

if [ "${REHEARSAL:-no}" = yes ]; then
	# --limit keeps 64 training examples, so that an epoch is two steps. A CPU compiles for longer
	# than all else takes, so every part has its time six times over, or more where it is busy.
	SLOWER=${SLOWER:-6}
	SIZES=(--params 0.25 --seeds 0) TOY=(--limit 64) RECIPES=(lpaf-plus svd-ft)
	TRAIN=(--lengths 32 --rounds 1 --windows 1 --steps 1 --groups 25)
	LINALG=(--only "score 384x384 k=48" --limit 2)
else
	SLOWER=1
	SIZES=(--params 0.5 0.25 0.16 0.1 --seeds 0 1 2) TOY=()
	RECIPES=(lpaf lpaf-plus svd-ft lpaf-without-step-1 lpaf-without-step-2 lpaf-without-step-3)
	TRAIN=(--batch 256) LINALG=(--limit 5)
fi

part() { # name, seconds, command
	local name=$1 limit=$((SLOWER * $2))
	shift 2
	echo "== $name, at most $limit s"
	local begun=$SECONDS
	timeout --signal=INT --kill-after=10 "$limit" "$@" >"$OUT/$name.log" 2>&1
	echo "== $name ended with $? after $((SECONDS - begun)) s: $OUT/$name.log"
}

# One cell in float32 first: without it the bfloat16 figures of the grid have nothing beside them.
part parity 60 "$PYTHON" -m lpaf_jax.cli compare "$MODEL" --task "$TASK" \
	--recipes lpaf-plus --params 0.25 --seeds 0 --tune-epochs 10 --out "$OUT/parity" "${TOY[@]}"
part grid 300 "$PYTHON" -m lpaf_jax.cli compare "$MODEL" --task "$TASK" --dtype bfloat16 \
	--recipes "${RECIPES[@]}" "${SIZES[@]}" --keep all \
	--tune-epochs 10 --out "$OUT/grid" "${TOY[@]}"
part train 90 "$PYTHON" benchmarks/train.py --dtype bfloat16 --malloc plain \
	--peak-tflops "$PEAK_TFLOPS" --out "$OUT/train.json" "${TRAIN[@]}"
part linalg 75 "$PYTHON" benchmarks/linalg.py "$OUT/grid/runs/${RECIPES[0]}-0.25-0" \
	--out "$OUT/linalg.json" "${LINALG[@]}"

for folder in parity grid; do
	[ -f "$OUT/$folder/compare.json" ] && cp "$OUT/$folder/compare.json" "$OUT/$folder.json"
done
ls -l "$OUT"/*.json
