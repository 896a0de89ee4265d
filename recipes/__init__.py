"""The labs of the course, a file each: `python -m framework recipes`."""

COURSE = (  # in the order in which they are learned; every list of the labs follows it
    "tensor_manipulation", "linear_regression", "gradient_descent", "multivariable_regression",  # Lab 01 to 04-1
    "minibatch", "custom_dataset", "batch_or_minibatch",  # Lab 04-2
    "logistic_regression", "softmax",  # Lab 05 and 06
    "maximum_likelihood", "overfitting", "checkpointing", "learning_rate", "preprocessing",  # Lab 07-1
    "mnist_softmax", "digits",  # Lab 07-2
    "xor", "mnist_mlp", "initialization", "dropout", "batch_norm", "mnist_cnn", "char_rnn",  # Lab 08 to 11
    "network_diagrams", "cpu_vs_gpu", "sgd_variants", "data_loader", "mnist_binary",  # Week 05-2
)  # fmt: skip
