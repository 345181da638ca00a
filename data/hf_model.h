// Hugging Face model directories, read and written.
#ifndef DATA_HF_MODEL_H
#define DATA_HF_MODEL_H

#include "hf_read.h"
#include "hf_write.h"

#endif
