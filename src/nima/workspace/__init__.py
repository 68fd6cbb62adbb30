"""What every stage stands on: params, the folder and process it runs in, and the errors that users see."""
