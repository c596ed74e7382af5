"""The model server: state (store), bookkeeping (ledger), HTTP (app) and process (runner)."""
