# Whether kernels/cuda is built: CARAVAN_CUDA is set to ON or OFF for what follows.
set(CARAVAN_CUDA AUTO CACHE STRING
  "CUDA backend: ON, OFF, or AUTO (where a CUDA compiler is found, but not under a sanitizer)")
if(CARAVAN_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  # nvcc's own host code cannot be instrumented.
  if(NOT CARAVAN_SANITIZE)
    check_language(CUDA)
  endif()
  if(CMAKE_CUDA_COMPILER AND NOT CARAVAN_SANITIZE)
    set(CARAVAN_CUDA ON)
  else()
    set(CARAVAN_CUDA OFF)
  endif()
endif()
if(CARAVAN_CUDA)
  # Every card from Turing to Blackwell, and later ones through the last's PTX. -D or the environment's
  # CUDAARCHS may name fewer: each adds to the build's time.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    set(CMAKE_CUDA_ARCHITECTURES "75-real;80-real;86-real;89-real;90-real;120"
      CACHE STRING "CUDA architectures to compile for")
  endif()
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  enable_language(CUDA)
  # CMake 3.25 knows this of clang only.
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  find_package(CUDAToolkit REQUIRED)
endif()
