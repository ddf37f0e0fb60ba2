"""Training of action recognition on UCF101, in the style of the robustness study's code."""

import torch
from data import loaders
from models import fetch_model
from options import parse_options
from torch import nn, optim
from training import save, train_epoch, val_epoch


def get_optimizer(options, parameters):
    dampening = 0 if options.nesterov else options.dampening
    return optim.SGD(
        parameters,
        lr=options.learning_rate,
        momentum=options.momentum,
        dampening=dampening,
        weight_decay=options.weight_decay,
        nesterov=options.nesterov,
    )


def last_checkpoint(options):
    path = options.output_dir / "save_last.pth"
    if not options.check_resume or not path.is_file():
        return None
    checkpoint = torch.load(path)
    assert checkpoint["arch"] == options.model_type
    return checkpoint


def main(arguments=None):
    options = parse_options(arguments)
    torch.manual_seed(options.seed)
    model, parameters = fetch_model(options)
    checkpoint = last_checkpoint(options)
    if checkpoint is not None:
        model.load_state_dict(checkpoint["state_dict"])
    optimizer = get_optimizer(options, parameters)
    scheduler = optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", patience=options.lr_patience)
    begin = 0
    if checkpoint is not None:
        begin = checkpoint["epoch"]
        optimizer.load_state_dict(checkpoint["optimizer"])
        scheduler.load_state_dict(checkpoint["scheduler"])
    criterion, log = nn.CrossEntropyLoss(), []
    for epoch in range(begin, options.stop_after or options.epochs):
        train_loader, val_loader = loaders(options, epoch)
        log.append(train_epoch(train_loader, model, criterion, optimizer))
        scheduler.step(val_epoch(val_loader, model, criterion))
        save(epoch, model, optimizer, scheduler, options)
    return model, optimizer, log


if __name__ == "__main__":
    main()
