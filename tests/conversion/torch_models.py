"""PyTorch's models, in an environment with torch and torchrec: made, loaded, and their predictions.

    python torch_models.py make|load KIND MODEL.pt ROWS.npz PREDICTIONS.npy

``make`` saves a model with random parameters as its program does, ``load`` reads one strictly.
ROWS has ``dense``, ``ids`` (-1 is absent) and ``ends``, the column after each table's last.
"""

import itertools
import sys

import numpy as np
import torch
from torch import nn

ROWS, DIM, DENSE, BOTTOM, TOP = (9, 30, 12), 4, 3, (6, 4), (7, 5, 1)
NAMES = ("user", "item", "shop")


def mlp(widths, last):
    layers = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1], last)


class Reference(nn.Module):
    """The layers and the formula of ``dlrm_s_pytorch.py``."""

    def __init__(self, itself, cat):
        super().__init__()
        self.itself, self.cat = itself, cat
        count = len(ROWS) + 1
        pairs = count * (count + 1) // 2 if itself else count * (count - 1) // 2
        width = DIM * count if cat else DIM + pairs
        self.emb_l = nn.ModuleList(nn.EmbeddingBag(n, DIM, mode="sum") for n in ROWS)
        self.bot_l = mlp((DENSE, *BOTTOM), nn.ReLU())
        self.top_l = mlp((width, *TOP), nn.Sigmoid())

    def forward(self, dense, bags):
        x = self.bot_l(dense)
        ly = [
            table(ids, offsets[:-1]) for table, (ids, offsets) in zip(self.emb_l, bags, strict=True)
        ]
        if self.cat:
            return self.top_l(torch.cat([x, *ly], dim=1))[:, 0]
        t = torch.cat([x, *ly], dim=1).view((len(x), -1, DIM))
        z = torch.bmm(t, torch.transpose(t, 1, 2))
        li, lj = torch.tril_indices(z.shape[1], z.shape[2], offset=0 if self.itself else -1)
        return self.top_l(torch.cat([x, z[:, li, lj]], dim=1))[:, 0]


class TorchRec(nn.Module):
    """TorchRec's own model, and its sigmoid."""

    def __init__(self, dcn):
        super().__init__()
        from torchrec.models.dlrm import DLRM, DLRM_DCN, DLRMTrain
        from torchrec.modules.embedding_configs import EmbeddingBagConfig
        from torchrec.modules.embedding_modules import EmbeddingBagCollection

        tables = [
            EmbeddingBagConfig(
                name=f"t_{name}", embedding_dim=DIM, num_embeddings=rows, feature_names=[name]
            )
            for name, rows in zip(NAMES, ROWS, strict=True)
        ]
        make, more = (DLRM_DCN, {"dcn_num_layers": 2, "dcn_low_rank_dim": 3}) if dcn else (DLRM, {})
        self.train_module = DLRMTrain(
            make(
                embedding_bag_collection=EmbeddingBagCollection(tables=tables),
                dense_in_features=DENSE,
                dense_arch_layer_sizes=[*BOTTOM],
                over_arch_layer_sizes=[*TOP],
                **more,
            )
        )

    def forward(self, dense, bags):
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        lengths = torch.cat([offsets.diff() for _, offsets in bags])
        features = KeyedJaggedTensor.from_lengths_sync(
            [*NAMES], torch.cat([ids for ids, _ in bags]), lengths
        )
        return torch.sigmoid(self.train_module.model(dense, features))[:, 0]


def bags_of(ids, ends):
    for part in np.split(ids, ends[:-1], axis=1):
        offsets = np.concatenate([[0], np.cumsum((part >= 0).sum(axis=1))])
        yield torch.from_numpy(part[part >= 0].astype(np.int64)), torch.from_numpy(offsets)


def main(action, kind, path, rows, output):
    torch.manual_seed(5)
    is_reference = kind.startswith("dlrm")
    whole = (
        Reference(kind == "dlrm_self", kind == "dlrm_cat")
        if is_reference
        else TorchRec(kind == "dcn")
    )
    model = whole if is_reference else whole.train_module  # saved as torchrec_dlrm trains it
    if action == "make":
        with torch.no_grad():
            for array in model.parameters():
                array.uniform_(-0.6, 0.6)
        state = model.state_dict()
        if is_reference:
            optimizer = torch.optim.Adagrad(model.parameters())
            state = {
                "nepochs": 1, "nbatches": 10, "nbatches_test": 2, "state_dict": state,
                "test_acc": np.float64(0.78), "epoch": 0, "iter": 10, "train_loss": np.float32(0.4),
                "total_loss": 4.0, "opt_state_dict": optimizer.state_dict(),
            }  # fmt: skip
        torch.save(state, path)
    else:
        content = torch.load(path, weights_only=True)
        if is_reference:  # what the reference asks for
            assert {"iter", "epoch", "nepochs", "nbatches", "nbatches_test"} <= content.keys()
            assert {"train_loss", "total_loss", "test_acc", "test_auc"} <= content.keys()
            model.load_state_dict(content["state_dict"])
        else:
            model.model.load_state_dict(content)
    arrays = np.load(rows)
    with torch.no_grad():
        found = whole(torch.from_numpy(arrays["dense"]), [*bags_of(arrays["ids"], arrays["ends"])])
    np.save(output, found.numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
