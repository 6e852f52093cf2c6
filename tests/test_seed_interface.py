"""The seed's cells in the seed's order, against a prepared data set and planted weights."""

import json
import os
import time

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch.utils.data import DataLoader
from torchvision import models as tv
from torchvision import transforms

from data_loader import VideoDataset2D, VideoDataset3D
from models import ResNet3D, ResNet18Temporal, weights_file
from utils import EarlyStopping, eval_one_epoch, train_one_epoch

pytestmark = pytest.mark.slow

NORMALIZE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
TRAIN = transforms.Compose([
    transforms.ToPILImage(), transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(),
    transforms.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3), transforms.RandomRotation(10),
    transforms.ToTensor(), NORMALIZE])
EVAL = transforms.Compose([
    transforms.ToPILImage(), transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), NORMALIZE])


@pytest.fixture
def planted(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for backbone, net in (("resnet18", tv.resnet18(weights=None)), ("resnet3d", tv.video.r3d_18(weights=None))):
        weights_file(backbone).parent.mkdir(parents=True, exist_ok=True)
        torch.save(net.state_dict(), weights_file(backbone))


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # the seed's number
@pytest.mark.parametrize("kind, frames, shape", [("2d", 4, (2, 4, 3, 224, 224)), ("3d", 4, (2, 3, 4, 224, 224))])
def test_the_seeds_walk(planted, tiny_dataset, class_map, tmp_path, monkeypatch, kind, frames, shape):
    monkeypatch.chdir(tmp_path)
    Dataset = VideoDataset2D if kind == "2d" else VideoDataset3D
    sets = [Dataset(str(tiny_dataset / "splits" / f"{part}.csv"), str(tiny_dataset), class_map, num_frames=frames,
                    transform=TRAIN if part == "train" else EVAL, train=part == "train")
            for part in ("train", "val", "test")]
    train_loader, val_loader, test_loader = [DataLoader(s, batch_size=2, shuffle=i == 0, num_workers=4)
                                             for i, s in enumerate(sets)]
    assert next(iter(test_loader))[0].shape == shape

    if kind == "2d":
        model = ResNet18Temporal(num_classes=3, pooling="avg", dropout=0.5).to("cpu")
    else:
        model = ResNet3D(num_classes=3, dropout=0.5, freeze_backbone=True).to("cpu")
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.9)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
    early_stop = EarlyStopping(patience=3)
    train_loss, train_acc = train_one_epoch(model, train_loader, optimizer, criterion, "cpu")
    val_loss, val_acc = eval_one_epoch(model, val_loader, criterion, "cpu")
    scheduler.step()
    early_stop(val_loss)
    assert not early_stop.stop and 0 <= train_acc <= 1 and 0 <= val_acc <= 1 and train_loss > 0

    os.makedirs("results/saved_models/deep_learning")
    os.makedirs("results/stats_deep_learning")
    path = f"results/saved_models/deep_learning/best_{kind}-cnn.pth"
    torch.save(model.state_dict(), path)
    again = ResNet18Temporal(3, weights=None) if kind == "2d" else ResNet3D(3, weights=None)
    again.load_state_dict(torch.load(path))
    again.eval()

    predicted, labels = [], []
    with torch.no_grad():
        for x, y in test_loader:
            predicted.extend(torch.argmax(again(x), dim=1).numpy())
            labels.extend(y.numpy())
    start = time.time()
    accuracy = accuracy_score(labels, predicted)
    p, r, f1, _ = precision_recall_fscore_support(labels, predicted, average="macro", zero_division=0)
    stats = {"accuracy": accuracy, "precision": p, "recall": r, "f1": f1, "inference_time": time.time() - start,
             "params": sum(q.numel() for q in again.parameters()), "model_size_mb": os.path.getsize(path) / 2**20}
    with open(f"results/stats_deep_learning/stats_{kind}.json", "w") as file:
        json.dump(stats, file, indent=4)
    np.save(f"results/stats_deep_learning/preds_{kind}.npy", predicted)
    assert len(predicted) == len(sets[2]) and sets[2].data.iloc[0]["clip_path"].startswith("/")
    assert np.load(f"results/stats_deep_learning/preds_{kind}.npy").shape == (len(sets[2]),)
