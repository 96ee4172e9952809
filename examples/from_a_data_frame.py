"""From a DataFrame of photos to a model in production: fit, evaluate, export, predict.

    python examples/from_a_data_frame.py photos.csv --out result/

photos.csv has the columns path and label. The script needs pandas and scikit-learn.
"""

import argparse
from pathlib import Path

import pandas as pd
from sklearn.model_selection import train_test_split

import headkit

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
parser.add_argument("photos", help="CSV file with the columns path and label")
parser.add_argument("--backbone", default="resnet18.a1_in1k", help="timm architecture")
parser.add_argument("--weights", help="weights file of the backbone; default: download them")
parser.add_argument("--out", type=Path, default=Path("result"), help="folder for the results")


def main() -> None:
    """Run all steps. Nothing here is special to this script: use the lines in a notebook."""
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    # 1. A table of photos. Keep a fifth of them away from the training.
    photos = pd.read_csv(options.photos)
    train, test = train_test_split(photos, test_size=0.2, stratify=photos["label"], random_state=0)
    print(headkit.describe_data(train))

    # 2. Train a head. The backbone stays as it is, and its features are cached.
    backbone = headkit.load_backbone(options.backbone, options.weights)
    head = headkit.fit(backbone, train)
    head.save(options.out / "head.safetensors")

    # 3. Measure the head on the photos that it has not seen.
    evaluation = headkit.evaluate(head, test, backbone=backbone)
    evaluation.save(options.out / "evaluation.json")
    low, high = evaluation.metrics["accuracy_interval"]
    print(f"accuracy {evaluation.metrics['accuracy']:.3f}, between {low:.3f} and {high:.3f}")

    # 4. Export one file that runs without torch. headkit compares it with torch.
    model = headkit.export(head, options.out / "model.onnx", backbone=backbone)

    # 5. Predict, and write a table.
    predictor = headkit.Predictor(model.path)
    best = [found[0] for found in predictor(test["path"].tolist(), top_k=1)]
    table = test.assign(
        predicted=[one["label"] for one in best], score=[one["score"] for one in best]
    )
    table.to_csv(options.out / "predictions.csv", index=False)
    print(f"wrote head, model, evaluation and predictions to {options.out}/")


if __name__ == "__main__":
    main()
