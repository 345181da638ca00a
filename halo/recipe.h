// One table: every training scheme is a row of data, six operands of three products. The halo levels are those of arXiv 2501.02625:
//   F: Y = X W^T     E: dX = dY W     G: dW = dY^T X
#ifndef HALO_RECIPE_H
#define HALO_RECIPE_H

#include "ops.h"

typedef struct {
    const char* name;
    Opnd fx, fw;   // forward
    Opnd ee, ew;   // gradient of the input
    Opnd ge, gx;   // gradient of the weight
} Recipe;

// All rows; *count is set to their number. Every row has passed recipe_error.
C_API const Recipe* recipe_table(int* count);
// NULL if there is no such row.
C_API const Recipe* recipe_find(const char* name);
// The row for --level and --dtype ("halo2" + "int8" is "halo2-int8"; "bf16" is its own dtype; NULL or "auto": the one that the level is
// meant for, FP8 for halo0, FP6 for halo1, INT8 for the others); a user_error lists what exists.
C_API const Recipe* recipe_pick(const char* level, const char* dtype);
// Why a row cannot work (a rotation that does not cancel, operand formats that no product takes), or NULL.
C_API const char* recipe_error(const Recipe* r);

#endif
