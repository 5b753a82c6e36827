# llama-server on the libraries of the wheel, which were compiled from the same sources: both run the same kernels, and
# the longer half of the compilation is saved. This file takes the place of llama.cpp's own at the top of its tree.
#
# No web page, no HTTPS and no starting of programs: the build fetches nothing and the server needs nothing.
cmake_minimum_required(VERSION 3.21)
project(llama_server C CXX)

# what the folders below expect of the top file
set(LLAMA_VERSION 0)
set(LLAMA_VERSION_BASE 0)
set(LLAMA_VERSION_MAJOR 0)
set(LLAMA_BUILD_NUMBER 0)
set(LLAMA_BUILD_COMMIT vendored)
set(LLAMA_BUILD_COMMON ON)
set(LLAMA_BUILD_UI OFF)
set(LLAMA_USE_PREBUILT_UI OFF)
set(LLAMA_OPENSSL OFF)
set(LLAMA_SUBPROCESS OFF)
set(BUILD_SHARED_LIBS OFF)
set(CMAKE_BUILD_RPATH "$ORIGIN")
include(cmake/license.cmake)
include(cmake/common.cmake)
find_package(Threads REQUIRED)

add_library(ggml INTERFACE)
target_include_directories(ggml INTERFACE ggml/include)
target_link_libraries(ggml INTERFACE ${WHEEL_LIBRARIES}/libggml.so.0 ${WHEEL_LIBRARIES}/libggml-base.so.0)
add_library(llama INTERFACE)
target_include_directories(llama INTERFACE include)
target_link_libraries(llama INTERFACE ggml ${WHEEL_LIBRARIES}/libllama.so.0)

add_subdirectory(vendor)
add_subdirectory(common)
add_subdirectory(tools/mtmd)
add_subdirectory(tools/ui)
add_subdirectory(tools/server)
