"""What distillation keeps, gains and costs: the student beside its teacher and beside itself without a teacher."""
