//! MKL takes kernels for what the processor can do, whoever made it.

#[cfg(target_arch = "x86_64")]
#[test]
fn mkl_takes_the_widest_kernels() {
    // tch is what libtorch is linked by.
    let product = tch::Tensor::ones([64, 64], (tch::Kind::Float, tch::Device::Cpu));
    assert_eq!(product.matmul(&product).double_value(&[63, 63]), 64.0);
    host::prepare();
    // What mkl_cbwr_get_auto_branch(3) returns: 10 for AVX2, 12 and more for AVX-512.
    // SAFETY: a function of no arguments that returns a number.
    let branch = unsafe {
        let address = libc::dlsym(libc::RTLD_DEFAULT, c"mkl_serv_cbwr_get_auto_branch".as_ptr());
        assert!(!address.is_null(), "libtorch without MKL");
        std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> libc::c_int>(address)()
    };
    if is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512dq") {
        assert!(branch >= 12, "{branch}");
    } else if is_x86_feature_detected!("avx2") {
        assert!(branch >= 10, "{branch}");
    }
}
