"""The library used from Python: quantize, compare, correct, save.

python example_quantization_usage.py
"""

import torch

from correction import ClusterAffineCorrection
from evaluation.inference import infer_logits
from evaluation.metrics import agreement, topk_accuracy
from loaders import load_dataset
from logits_io import LogitsAnalyzer, RunName
from models import load_model
from quant import QuantizationManager

model = load_model("digits_resnet")
data = load_dataset("digits", None, model.entry.preprocess)
manager = QuantizationManager()
print("methods:", ", ".join(manager.list_available_methods()))

method = manager.get_quantization_method(
    "adaround", n_bits_w=2, n_bits_a=4, iters_w=300, lr_round=1e-2
)
quantized = method.quantize_model(model.network, model.network, data.train.batches(64))

networks, device = {"fullprecision": model.network, "quantized": quantized}, torch.device("cpu")
fitting = infer_logits(networks, data.train.batches(64), device)
result = infer_logits(networks, data.val.batches(64), device)

correction = ClusterAffineCorrection(num_clusters=8, pca_dim=5, alpha=0.6)
correction.build_correction_model(fitting.logits["quantized"], fitting.logits["fullprecision"])
result.logits["corrected"] = correction.apply_correction(result.logits["quantized"])

for kind, logits in result.logits.items():
    top1 = topk_accuracy(logits, result.targets)
    same = agreement(logits, result.logits["fullprecision"])
    print(f"{kind:<14} Top-1 {top1:.2%}  agreement with full precision {same:.2%}")

name = RunName("digits_resnet", 2, 4, seed=1005)
folder = LogitsAnalyzer("outputs/example").save_logits_to_csv(
    name.initial_folder, name.file_stem, result.logits, result.targets, {"method": "adaround"}
)
print("logits in", folder)
